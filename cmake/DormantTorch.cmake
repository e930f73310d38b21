# dormant::torch, libtorch by path: the folder of Python's package torch, or of a libtorch archive. Not find_package(Torch):
# that of a CUDA build wants the CUDA toolkit, which its headers and libraries do not need for what dormant does.
# Used by dormant's own build and installed beside dormantConfig.cmake.
#
#   dormant_add_torch(FOLDER)   defines the target; sets dormant_TORCH_FOUND_VERSION to "2.13.0"
function(dormant_add_torch folder)
  file(STRINGS "${folder}/include/torch/headeronly/version.h" lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
  string(REGEX MATCHALL "[0-9]+" version "${lines}")
  list(JOIN version "." version)
  set(dormant_TORCH_FOUND_VERSION "${version}" PARENT_SCOPE)
  if(TARGET dormant::torch)
    return()
  endif()
  add_library(dormant::torch INTERFACE IMPORTED GLOBAL)
  target_include_directories(dormant::torch INTERFACE "${folder}/include" "${folder}/include/torch/csrc/api/include")
  # Wheels of torch export parts of the C++ library that they were linked with (libtorch.so of 2.11: std::filesystem, of which
  # remove_all crashes). Whoever is linked takes these functions from the system's library, which therefore comes first.
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    target_link_libraries(dormant::torch INTERFACE "-Wl,--push-state,--no-as-needed,-lstdc++,--pop-state")
  endif()
  foreach(name torch torch_cpu c10)
    find_library(library ${name} PATHS "${folder}/lib" NO_DEFAULT_PATH NO_CACHE REQUIRED)
    target_link_libraries(dormant::torch INTERFACE "${library}")
    unset(library)
  endforeach()
endfunction()
