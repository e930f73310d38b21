// Marks what libdormant.so exports; everything else is hidden.
#pragma once

#if defined(__GNUC__) || defined(__clang__)
#define DORMANT_API __attribute__((visibility("default")))
#else
#define DORMANT_API
#endif
