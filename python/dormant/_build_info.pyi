"""Written by the build: what the extension was compiled against."""

TORCH_VERSION: str
