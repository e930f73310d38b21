# Compile through ccache where it is installed; a compiler launcher chosen by the user wins.
find_program(DORMANT_CCACHE ccache)
if(DORMANT_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # A precompiled header carries time stamps; without this, ccache would never hit.
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${DORMANT_CCACHE})
endif()
