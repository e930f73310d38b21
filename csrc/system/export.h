// Marks what the bindings need of libdormant.so besides the public interface, which DORMANT_API
// marks (<dormant/export.h>): nobody else may rely on it. Tests are linked with everything.
#pragma once

#include <dormant/export.h>

#define DORMANT_BINDINGS_API DORMANT_API
