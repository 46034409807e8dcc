"""What XLA's compiler is told: whose kernels it runs."""

import functools

import jax

KERNELS = "xla_cpu_experimental_ynn_fusion_type"
TRITON = "xla_gpu_enable_triton_gemm"


@functools.cache
def compiler_options(*, ynnpack_products: bool) -> dict[str, str | bool]:
    """For ``jax.jit``: XLA's own convolutions on a CPU, and its own products where ``ynnpack_products`` is false; on an
    NVIDIA GPU, cuBLAS's products.

    By default XLA's CPU backend leaves both to YNNPACK, whose convolutions are slower, up to 2.7 times; so are its
    float32 products, by a tenth, but it alone uses a processor's bfloat16 instructions, and in training, where products
    that do not wait for each other run side by side, its own are the faster (``benchmarks/NOTES.md``). On a GPU XLA
    forms a Triton kernel of each product and what surrounds it, and, having found cuBLAS the faster, leaves biases and
    residual sums outside, which cuBLAS's own would have included.

    Returns:
        No option on other devices, or where the compiler does not know this one, which is experimental. ``jax.jit``
        takes options only where it is not traced by another.
    """  # noqa: D205
    options: dict[str, str | bool]
    match jax.default_backend():
        case "cpu":
            kernels = ["LIBRARY_FUSION_TYPE_REDUCE"]
            if ynnpack_products:
                kernels.append("LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT")
            options = {KERNELS: ",".join(kernels)}
        case "gpu":
            options = {TRITON: False}
        case _:
            return {}
    try:
        jax.jit(lambda x: x + 1).lower(0.0).compile(options)
    except jax.errors.JaxRuntimeError:
        return {}
    return options
