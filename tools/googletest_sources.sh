#!/usr/bin/env bash
# Prints the folder of the GoogleTest sources (it holds include/ and src/), fetching them into DIR where necessary.
#
#   googletest_sources.sh DIR
#
# GoogleTest is on no Python index, so it comes from, in this order: DORMANT_GOOGLETEST_DIR, the installed package
# googletest, or that package downloaded and unpacked into DIR, for which apt needs no root.
set -euo pipefail

dir=$1
for candidate in "${DORMANT_GOOGLETEST_DIR:-}" /usr/src/googletest/googletest "$dir"/package/usr/src/googletest/googletest; do
  if [[ -n $candidate && -f $candidate/src/gtest-all.cc ]]; then
    printf '%s\n' "$candidate"
    exit 0
  fi
done

if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
  mkdir -p "$dir"
  cd "$dir"
  # A bare container has no package lists; as root they can be fetched.
  apt-get download googletest >&2 2>/dev/null ||
    { [[ $(id -u) == 0 ]] && apt-get update -qq >&2 && apt-get download googletest >&2; } || true
  if package=$(compgen -G 'googletest_*.deb' | head -n 1); then
    dpkg-deb --extract "$package" package
    rm -- googletest_*.deb
    printf '%s\n' "$dir/package/usr/src/googletest/googletest"
    exit 0
  fi
fi

cat >&2 <<'MESSAGE'
dormant: the C++ tests need the GoogleTest sources, and none were found on this machine or through apt.
Install the package googletest (Debian, Ubuntu), or unpack a release of GoogleTest 1.12 or later and run
make with DORMANT_GOOGLETEST_DIR=/path/to/googletest/googletest, the folder that holds src/gtest-all.cc.
MESSAGE
exit 1
