# Compiler flags shared by every target, and those of single source files.

function(dormant_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra $<$<BOOL:${DORMANT_WERROR}>:-Werror>)
  # Values must not depend on what the compiler may fuse: a multiply-add contracted into one rounding is another number.
  target_compile_options(${target} PRIVATE -ffp-contract=off)
  if(NOT DORMANT_SANITIZE)
    get_target_property(_type ${target} TYPE)
    if(_type STREQUAL "SHARED_LIBRARY")
      # A missing definition is an error here, not at `import dormant`.
      target_link_options(${target} PRIVATE -Wl,-z,defs)
    endif()
  endif()
  if(DORMANT_SANITIZE)
    # The instrumentation hides initializations from GCC's flow analysis: false alarms, in the standard library even.
    target_compile_options(${target} PRIVATE -fsanitize=${DORMANT_SANITIZE} -fno-omit-frame-pointer -g
                                             -Wno-maybe-uninitialized)
    # Type information of torch's hidden classes is not shared between libraries, so `vptr` would report each of them.
    if(DORMANT_SANITIZE MATCHES "undefined")
      target_compile_options(${target} PRIVATE -fno-sanitize=vptr -fno-sanitize-recover=undefined)
    endif()
    target_link_options(${target} PRIVATE -fsanitize=${DORMANT_SANITIZE})
  endif()
endfunction()

# Everything is built for the baseline of the architecture but the kernels, NAME_simd.cpp, which are chosen at run time:
# each is compiled once for each level of csrc/simd/level.h, by way of a file that includes it. These copies are the only
# files compiled for more.
function(dormant_instruction_sets)
  set(flags_portable)
  set(flags_avx2 -mavx2 -mfma -mf16c)
  set(flags_avx512 ${flags_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  set(levels portable)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(APPEND levels avx2 avx512)
  endif()
  foreach(source IN LISTS ARGN)
    if(NOT source MATCHES "_simd\\.cpp$")
      continue()
    endif()
    set_source_files_properties(${source} PROPERTIES HEADER_FILE_ONLY ON)
    cmake_path(GET source STEM name)
    foreach(level IN LISTS levels)
      string(TOUPPER ${level} define)
      set(copy "${CMAKE_CURRENT_BINARY_DIR}/simd/${name}_${level}.cpp")
      file(CONFIGURE OUTPUT "${copy}" CONTENT "#include \"@source@\"\n" @ONLY)
      set_source_files_properties("${copy}" PROPERTIES COMPILE_OPTIONS "${flags_${level}}"
                                                       COMPILE_DEFINITIONS DORMANT_SIMD_${define})
      target_sources(dormant PRIVATE "${copy}")
    endforeach()
  endforeach()
endfunction()
