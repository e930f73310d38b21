# Finds the libtorch inside the torch package of the Python that builds, unless Torch_DIR or CMAKE_PREFIX_PATH
# already names one. Sets DORMANT_TORCH_VERSION (major.minor.patch).
if(DORMANT_PYTHON)
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
else()
  find_package(Python 3.10 COMPONENTS Interpreter)
endif()

if(NOT Torch_DIR AND Python_EXECUTABLE)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import torch.utils; print(torch.utils.cmake_prefix_path)"
    OUTPUT_VARIABLE _torch_prefix
    OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE _torch_missing
    ERROR_QUIET)
  if(NOT _torch_missing)
    list(APPEND CMAKE_PREFIX_PATH "${_torch_prefix}")
  endif()
endif()

# TorchConfig.cmake warns that the optional kineto library is absent from the wheel; nothing here needs it.
find_package(Torch REQUIRED)

file(STRINGS "${TORCH_INSTALL_PREFIX}/include/torch/headeronly/version.h" _torch_version_lines
     REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
string(REGEX MATCHALL "[0-9]+" _torch_version "${_torch_version_lines}")
list(JOIN _torch_version "." DORMANT_TORCH_VERSION)
if(DORMANT_TORCH_VERSION VERSION_LESS 2.13 OR DORMANT_TORCH_VERSION VERSION_GREATER_EQUAL 2.16)
  message(
    WARNING
      "dormant: building against torch ${DORMANT_TORCH_VERSION}; 2.13 to 2.15 are supported. Other releases may lack "
      "headers, or draw other random numbers. Install a supported torch, or run all tests before relying on this build.")
endif()
