// The release that these headers belong to. CMake reads it from here, so that it is stated once.
#pragma once

#define DORMANT_VERSION_MAJOR 0
#define DORMANT_VERSION_MINOR 1
#define DORMANT_VERSION_PATCH 0
