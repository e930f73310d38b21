# Compiler flags shared by every target, and those of single source files.

function(dormant_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra $<$<BOOL:${DORMANT_WERROR}>:-Werror>)
  # Values must not depend on what the compiler may fuse: a multiply-add contracted into one rounding is another number.
  target_compile_options(${target} PRIVATE -ffp-contract=off)
  if(NOT DORMANT_SANITIZE AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
    get_target_property(_type ${target} TYPE)
    if(_type STREQUAL "SHARED_LIBRARY")
      # A missing definition is an error here, not at `import dormant`.
      target_link_options(${target} PRIVATE -Wl,-z,defs)
    endif()
  endif()
  if(DORMANT_SANITIZE)
    # The instrumentation hides initialisations from GCC's flow analysis: false alarms, in the standard library even.
    target_compile_options(${target} PRIVATE -fsanitize=${DORMANT_SANITIZE} -fno-omit-frame-pointer -g
                                             -Wno-maybe-uninitialized)
    # Type information of torch's hidden classes is not shared between libraries, so `vptr` would report each of them.
    if(DORMANT_SANITIZE MATCHES "undefined")
      target_compile_options(${target} PRIVATE -fno-sanitize=vptr -fno-sanitize-recover=undefined)
    endif()
    target_link_options(${target} PRIVATE -fsanitize=${DORMANT_SANITIZE})
  endif()
endfunction()

# Everything is built for the baseline of the architecture; NAME_avx2.cpp and NAME_avx512.cpp hold the kernels that are
# chosen at run time, and are the only files compiled for more.
function(dormant_instruction_sets)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    return()
  endif()
  set(avx2 -mavx2 -mfma -mf16c)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  foreach(source IN LISTS ARGN)
    if(source MATCHES "_avx2\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${avx2}")
    elseif(source MATCHES "_avx512\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${avx512}")
    endif()
  endforeach()
endfunction()
