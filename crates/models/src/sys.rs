//! Calls that mlx-rs does not wrap, or wraps too expensively for a step's inner loop.
//!
//! The only place in this crate that says `unsafe`. Everything here takes and gives
//! [`Array`]s; no raw handle leaves. [`crate::device::choose`] must have run: before it, an error
//! in mlx-c ends the process.
#![allow(unsafe_code)] // This is the crate's one gate to mlx-c.

use std::ffi::{CStr, CString};

use mlx_rs::error::{Exception, Result};
use mlx_rs::{Array, Dtype, Stream};

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

/// A copy that shares nothing with `array` once evaluated; MLX's own copy and `contiguous` are
/// views where they can be.
pub fn copy(array: &Array) -> Result<Array> {
    array.multiply(Array::from_f32(1.0).as_dtype(array.dtype())?)
}

/// Waits until the device has done all that was submitted and let go of what it held.
pub fn synchronize() -> Result<()> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: the stream is live.
    match unsafe { mlx_sys::mlx_synchronize(stream.as_ptr()) } {
        0 => Ok(()),
        _ => Err(Exception::custom("waiting for the device was refused")),
    }
}

/// The function that [`random_bits`] maps over keys. `payload` is the number of words.
unsafe extern "C" fn bits_trace(
    result: *mut mlx_sys::mlx_vector_array,
    inputs: mlx_sys::mlx_vector_array,
    payload: *mut std::ffi::c_void,
) -> i32 {
    let stream = Stream::thread_local_or_default();
    // SAFETY: MLX calls this with a live vector of the one input and a valid place for the
    // result; `payload` points to the caller's i32 for as long as the trace runs. Handles made
    // here are freed here.
    unsafe {
        let shape = [*payload.cast::<i32>()];
        let mut key = mlx_sys::mlx_array_new();
        let mut bits = mlx_sys::mlx_array_new();
        let mut status = mlx_sys::mlx_vector_array_get(&mut key, inputs, 0);
        if status == 0 {
            status =
                mlx_sys::mlx_random_bits(&mut bits, shape.as_ptr(), 1, 4, key, stream.as_ptr());
        }
        if status == 0 {
            status = mlx_sys::mlx_vector_array_set_value(result, bits);
        }
        mlx_sys::mlx_array_free(key);
        mlx_sys::mlx_array_free(bits);
        status
    }
}

/// `[rows, words]` random 32-bit words, each row from its own key of `keys`, `[rows, 2]`, as if
/// it were alone; one operation for all of them.
pub fn random_bits(keys: &Array, words: i32) -> Result<Array> {
    let mut words = words;
    let axis = [0];
    // SAFETY: `words` outlives the trace, which is over when `mlx_detail_vmap_trace` returns;
    // every vector and the closure are freed here; the result goes to a fresh handle.
    let (status, handle) = unsafe {
        let payload = (&raw mut words).cast();
        let closure = mlx_sys::mlx_closure_new_func_payload(Some(bits_trace), payload, None);
        let inputs = mlx_sys::mlx_vector_array_new_value(keys.as_ptr());
        let mut traced_in = mlx_sys::mlx_vector_array_new();
        let mut traced_out = mlx_sys::mlx_vector_array_new();
        let mut outputs = mlx_sys::mlx_vector_array_new();
        let mut handle = mlx_sys::mlx_array_new();
        let mut status = mlx_sys::mlx_detail_vmap_trace(
            &mut traced_in,
            &mut traced_out,
            closure,
            inputs,
            axis.as_ptr(),
            1,
        );
        if status == 0 {
            status = mlx_sys::mlx_detail_vmap_replace(
                &mut outputs,
                inputs,
                traced_in,
                traced_out,
                axis.as_ptr(),
                1,
                axis.as_ptr(),
                1,
            );
        }
        if status == 0 {
            status = mlx_sys::mlx_vector_array_get(&mut handle, outputs, 0);
        }
        for vector in [inputs, traced_in, traced_out, outputs] {
            mlx_sys::mlx_vector_array_free(vector);
        }
        mlx_sys::mlx_closure_free(closure);
        (status, handle)
    };
    owned(status, handle, "random bits")
}

/// The version of the MLX that runs, as `0.31.1`.
pub fn version() -> Option<String> {
    // SAFETY: the string is made and freed here; its text, which mlx-c ends with a 0, is copied
    // before that.
    unsafe {
        let mut string = mlx_sys::mlx_string_new();
        let status = mlx_sys::mlx_version(&mut string);
        let told = (status == 0).then(|| CStr::from_ptr(mlx_sys::mlx_string_data(string)));
        let version = told.map(|text| text.to_string_lossy().into_owned());
        mlx_sys::mlx_string_free(string);
        version
    }
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
        let this = Self { closure, _thread: std::marker::PhantomData };
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

/// A kernel in CUDA C++ that MLX compiles when first run.
///
/// The source is the body of a function; MLX declares a `const` pointer per input, a pointer
/// `out`, the type `T`, and `NAME_shape` for each input whose shape the source names.
pub struct CudaKernel {
    kernel: mlx_sys::mlx_fast_cuda_kernel,
    dtype: u32,
    block: i32,
    // Lazy arrays that it makes belong to the thread that uses it.
    _thread: std::marker::PhantomData<*const ()>,
}

/// The output's shape and the number of threads of a run of a [`CudaKernel`].
pub struct CudaLaunch {
    config: mlx_sys::mlx_fast_cuda_kernel_config,
    _thread: std::marker::PhantomData<*const ()>,
}

impl CudaKernel {
    /// Declares a kernel with an output of `dtype`, which is `T`, run in blocks of `block` threads.
    pub fn new(
        name: &str,
        inputs: &[&str],
        source: &str,
        dtype: Dtype,
        block: i32,
    ) -> Result<Self> {
        let text =
            |text: &str| CString::new(text).map_err(|error| Exception::custom(error.to_string()));
        let (name, source, dtype) = (text(name)?, text(source)?, u32::from(dtype));
        let inputs: Vec<CString> = inputs.iter().map(|input| text(input)).collect::<Result<_>>()?;
        let mut names: Vec<_> = inputs.iter().map(|input| input.as_ptr()).collect();
        let mut output = [c"out".as_ptr()];
        // SAFETY: every text and list outlives the calls, which copy them; the two name vectors
        // are freed here, the kernel by the value returned.
        let kernel = unsafe {
            let ins = mlx_sys::mlx_vector_string_new_data(names.as_mut_ptr(), names.len());
            let outs = mlx_sys::mlx_vector_string_new_data(output.as_mut_ptr(), output.len());
            let kernel = mlx_sys::mlx_fast_cuda_kernel_new(
                name.as_ptr(),
                ins,
                outs,
                source.as_ptr(),
                c"".as_ptr(),
                true,
                0,
            );
            mlx_sys::mlx_vector_string_free(ins);
            mlx_sys::mlx_vector_string_free(outs);
            kernel
        };
        let this = Self { kernel, dtype, block, _thread: std::marker::PhantomData };
        match this.kernel.ctx.is_null() {
            false => Ok(this),
            true => Err(Exception::custom("a CUDA kernel was refused")),
        }
    }

    /// Describes a run of `threads` threads, whole blocks, with an output of `shape`.
    pub fn launch(&self, shape: &[i32], threads: i32) -> Result<CudaLaunch> {
        // SAFETY: the shape outlives the call, which copies it; the config is freed by the value
        // returned.
        let (status, launch) = unsafe {
            let config = mlx_sys::mlx_fast_cuda_kernel_config_new();
            let launch = CudaLaunch { config, _thread: std::marker::PhantomData };
            let mut status = mlx_sys::mlx_fast_cuda_kernel_config_add_output_arg(
                config,
                shape.as_ptr(),
                shape.len(),
                self.dtype,
            );
            status |= mlx_sys::mlx_fast_cuda_kernel_config_set_grid(config, threads, 1, 1);
            status |=
                mlx_sys::mlx_fast_cuda_kernel_config_set_thread_group(config, self.block, 1, 1);
            status |= mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_dtype(
                config,
                c"T".as_ptr(),
                self.dtype,
            );
            (status, launch)
        };
        match status {
            0 => Ok(launch),
            _ => Err(Exception::custom("a run of a CUDA kernel was refused")),
        }
    }

    /// Runs the kernel over `inputs`, one per name given to `new`. The caller answers for shapes
    /// and types that the source can read: [`crate::arch`] makes both from one description.
    pub fn apply(&self, launch: &CudaLaunch, inputs: &[&Array]) -> Result<Array> {
        let stream = Stream::thread_local_or_default();
        let handles: Vec<_> = inputs.iter().map(|input| input.as_ptr()).collect();
        // SAFETY: the input vector copies its handles; both vectors are freed here; kernel,
        // config and stream are live; the result goes to a fresh handle.
        let (status, handle) = unsafe {
            let inputs = mlx_sys::mlx_vector_array_new_data(handles.as_ptr(), handles.len());
            let mut outputs = mlx_sys::mlx_vector_array_new();
            let mut handle = mlx_sys::mlx_array_new();
            let mut status = mlx_sys::mlx_fast_cuda_kernel_apply(
                &mut outputs,
                self.kernel,
                inputs,
                launch.config,
                stream.as_ptr(),
            );
            if status == 0 {
                status = mlx_sys::mlx_vector_array_get(&mut handle, outputs, 0);
            }
            mlx_sys::mlx_vector_array_free(inputs);
            mlx_sys::mlx_vector_array_free(outputs);
            (status, handle)
        };
        owned(status, handle, "a CUDA kernel")
    }
}

impl Drop for CudaKernel {
    fn drop(&mut self) {
        // SAFETY: owned by this value and freed once.
        unsafe { mlx_sys::mlx_fast_cuda_kernel_free(self.kernel) };
    }
}

impl Drop for CudaLaunch {
    fn drop(&mut self) {
        // SAFETY: owned by this value and freed once.
        unsafe { mlx_sys::mlx_fast_cuda_kernel_config_free(self.config) };
    }
}

impl std::fmt::Debug for CudaLaunch {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("CudaLaunch")
    }
}

impl std::fmt::Debug for CudaKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("CudaKernel")
    }
}
