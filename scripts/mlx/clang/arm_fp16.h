/* Read by libclang in place of the compiler's own header, whose builtins it does not know. mlx-c wants the
   type alone, which is a keyword. */
