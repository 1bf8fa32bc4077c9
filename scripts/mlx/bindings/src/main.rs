//! Writes the `bindings.rs` that mlx-sys includes, for the systems where mlx-sys's own build script does not run.
//!
//! `mlx-bindings MLX_C_DIR OUTPUT [CLANG_ARG…]`. The bindgen settings are mlx-sys's own: the file that holds
//! them is included from its published package, which `MLX_SYS_DIR` names while this program is compiled.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

#[allow(dead_code)]
mod bindgen_config {
    include!(concat!(env!("MLX_SYS_DIR"), "/src/bindgen_config.rs"));
}

/// What bindgen finds in the headers on Arm and cannot find elsewhere: mlx-c declares these for Arm alone.
/// `scripts/mlx/support.cpp` defines them.
const HALF_PRECISION: &str = r#"
#[repr(transparent)]
#[derive(Debug, Default, Copy, Clone)]
pub struct float16_t(pub u16);
pub type bfloat16_t = u16;
unsafe extern "C" {
    pub fn mlx_array_item_float16(res: *mut float16_t, arr: mlx_array) -> ::std::os::raw::c_int;
    pub fn mlx_array_item_bfloat16(res: *mut bfloat16_t, arr: mlx_array) -> ::std::os::raw::c_int;
    pub fn mlx_array_data_float16(arr: mlx_array) -> *const float16_t;
    pub fn mlx_array_data_bfloat16(arr: mlx_array) -> *const bfloat16_t;
}
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(mlx_c), Some(output)) = (args.next(), args.next()) else {
        return Err("usage: mlx-bindings MLX_C_DIR OUTPUT [CLANG_ARG...]".into());
    };
    let mlx_c = PathBuf::from(mlx_c);
    let headers = bindgen_config::discover_headers(&mlx_c)?;
    let mut bindings = bindgen_config::builder(&mlx_c, &headers)
        .clang_args(args)
        .formatter(bindgen::Formatter::None)
        .generate()?
        .to_string();
    if !bindings.contains("mlx_array_item_float16") {
        bindings.push_str(HALF_PRECISION);
    }
    fs::write(output, bindings)?;
    Ok(())
}
