//! Calls that mlx-rs does not wrap, or wraps too expensively for a step's inner loop.
//!
//! The only place in this crate that says `unsafe`. Everything here takes and gives
//! [`Array`]s; no raw handle leaves. [`crate::device::choose`] must have run: before it, an error
//! in mlx-c ends the process.
#![allow(unsafe_code)] // This is the crate's one gate to mlx-c.

use mlx_rs::error::{Exception, Result};
use mlx_rs::{Array, Stream};

fn owned(status: i32, handle: mlx_sys::mlx_array, operation: &str) -> Result<Array> {
    // SAFETY: `handle` is a fresh handle that only this call owns, empty if the operation
    // failed; `Array` frees either.
    let array = unsafe { Array::from_ptr(handle) };
    match status {
        0 => Ok(array),
        _ => Err(Exception::custom(format!("{operation} was refused"))),
    }
}

/// `array[start..stop]`, all strides 1. A view: no data moves.
pub fn slice(array: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    let ones = [1; 8];
    let dimensions = array.ndim();
    if start.len() != dimensions || stop.len() != dimensions || dimensions > ones.len() {
        return Err(Exception::custom("slice: bounds of another rank"));
    }
    // SAFETY: the three bounds outlive the call and have the length given; `array` and
    // `stream` are live handles; the result goes to a fresh handle.
    let (status, handle) = unsafe {
        let mut handle = mlx_sys::mlx_array_new();
        let status = mlx_sys::mlx_slice(
            &mut handle,
            array.as_ptr(),
            start.as_ptr(),
            dimensions,
            stop.as_ptr(),
            dimensions,
            ones.as_ptr(),
            dimensions,
            stream.as_ptr(),
        );
        (status, handle)
    };
    owned(status, handle, "slice")
}

/// `array` with `update` at `start..stop`. In place once nothing else holds `array`'s data.
pub fn slice_update(array: &Array, update: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    let ones = [1; 8];
    let dimensions = array.ndim();
    if start.len() != dimensions || stop.len() != dimensions || dimensions > ones.len() {
        return Err(Exception::custom("slice_update: bounds of another rank"));
    }
    // SAFETY: as in `slice`; `update` is a live handle too.
    let (status, handle) = unsafe {
        let mut handle = mlx_sys::mlx_array_new();
        let status = mlx_sys::mlx_slice_update(
            &mut handle,
            array.as_ptr(),
            update.as_ptr(),
            start.as_ptr(),
            dimensions,
            stop.as_ptr(),
            dimensions,
            ones.as_ptr(),
            dimensions,
            stream.as_ptr(),
        );
        (status, handle)
    };
    owned(status, handle, "slice_update")
}

/// Whether MLX was built with a GPU and finds one.
pub fn gpu_available() -> bool {
    let mut available = false;
    // SAFETY: the device is made and freed here; the answer goes to a live local.
    let status = unsafe {
        let device = mlx_sys::mlx_device_new_type(mlx_sys::mlx_device_type__MLX_GPU, 0);
        let status = mlx_sys::mlx_device_is_available(&mut available, device);
        mlx_sys::mlx_device_free(device);
        status
    };
    status == 0 && available
}

/// `silu(gate) * up` as one kernel, compiled by MLX once for all shapes.
///
/// mlx-rs builds a compiled function anew per call, which costs more than it saves.
pub struct CompiledSwiglu {
    closure: mlx_sys::mlx_closure,
    // A compiled closure belongs to the thread that made it, like the arrays it makes.
    _thread: std::marker::PhantomData<*const ()>,
}

/// The function that MLX traces.
unsafe extern "C" fn swiglu_trace(
    result: *mut mlx_sys::mlx_vector_array,
    inputs: mlx_sys::mlx_vector_array,
) -> i32 {
    let stream = Stream::thread_local_or_default();
    let stream = stream.as_ptr();
    // SAFETY: MLX calls this with a live vector of the two inputs given to `apply` and a valid
    // place for the result. Every handle made here is freed here; the result vector holds its
    // own reference.
    unsafe {
        let mut handles = [mlx_sys::mlx_array_new(); 5];
        let [gate, up, sigmoid, silu, product] = &mut handles;
        let mut status = mlx_sys::mlx_vector_array_get(gate, inputs, 0);
        status |= mlx_sys::mlx_vector_array_get(up, inputs, 1);
        if status == 0 {
            status |= mlx_sys::mlx_sigmoid(sigmoid, *gate, stream);
        }
        if status == 0 {
            status |= mlx_sys::mlx_multiply(silu, *gate, *sigmoid, stream);
        }
        if status == 0 {
            status |= mlx_sys::mlx_multiply(product, *silu, *up, stream);
        }
        if status == 0 {
            status |= mlx_sys::mlx_vector_array_set_value(result, *product);
        }
        for handle in handles {
            mlx_sys::mlx_array_free(handle);
        }
        status
    }
}

impl CompiledSwiglu {
    /// Prepares the function; MLX compiles it at the first use.
    pub fn new() -> Result<Self> {
        // SAFETY: the plain closure is freed after `mlx_compile` took its own copy; the
        // compiled one is owned by the value returned, or freed on failure.
        let (status, closure) = unsafe {
            let plain = mlx_sys::mlx_closure_new_func(Some(swiglu_trace));
            let mut closure = mlx_sys::mlx_closure_new();
            let status = mlx_sys::mlx_compile(&mut closure, plain, true);
            mlx_sys::mlx_closure_free(plain);
            (status, closure)
        };
        let this = Self {
            closure,
            _thread: std::marker::PhantomData,
        };
        match status {
            0 => Ok(this),
            _ => Err(Exception::custom("compiling swiglu was refused")),
        }
    }

    /// `silu(gate) * up`.
    pub fn apply(&self, gate: &Array, up: &Array) -> Result<Array> {
        let inputs = [gate.as_ptr(), up.as_ptr()];
        // SAFETY: the input vector copies the two handles; it and the output vector are freed
        // here; the result goes to a fresh handle.
        let (status, handle) = unsafe {
            let inputs = mlx_sys::mlx_vector_array_new_data(inputs.as_ptr(), inputs.len());
            let mut outputs = mlx_sys::mlx_vector_array_new();
            let mut handle = mlx_sys::mlx_array_new();
            let mut status = mlx_sys::mlx_closure_apply(&mut outputs, self.closure, inputs);
            if status == 0 {
                status = mlx_sys::mlx_vector_array_get(&mut handle, outputs, 0);
            }
            mlx_sys::mlx_vector_array_free(inputs);
            mlx_sys::mlx_vector_array_free(outputs);
            (status, handle)
        };
        owned(status, handle, "swiglu")
    }
}

impl Drop for CompiledSwiglu {
    fn drop(&mut self) {
        // SAFETY: the closure is owned by this value and freed once.
        unsafe { mlx_sys::mlx_closure_free(self.closure) };
    }
}

impl std::fmt::Debug for CompiledSwiglu {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("CompiledSwiglu")
    }
}
