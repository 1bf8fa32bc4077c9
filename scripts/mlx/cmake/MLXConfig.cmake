# Tells mlx-c's build where an unpacked MLX wheel lies (MLX_WHEEL_DIR). The wheels' own package file is
# not used because the CUDA wheel's asks for a whole CUDA toolkit, which linking against it does not need.
add_library(mlx SHARED IMPORTED)
set_target_properties(mlx PROPERTIES
  IMPORTED_LOCATION "${MLX_WHEEL_DIR}/lib/libmlx.so"
  INTERFACE_INCLUDE_DIRECTORIES "${MLX_WHEEL_DIR}/include"
  INTERFACE_COMPILE_FEATURES cxx_std_20)
set(MLX_FOUND TRUE)
