"""What XLA's compiler is told: whose kernels a CPU runs."""

import functools

import jax

KERNELS = "xla_cpu_experimental_ynn_fusion_type"


@functools.cache
def compiler_options(*, ynnpack_products: bool) -> dict[str, str | bool]:
    """For ``jax.jit``: XLA's own convolutions on a CPU, and its own products where ``ynnpack_products`` is false.

    By default XLA's CPU backend leaves both to YNNPACK, whose convolutions are slower, up to 2.7 times; so are its
    float32 products, by a tenth, but it alone uses a processor's bfloat16 instructions, and in training, where products
    that do not wait for each other run side by side, its own are the faster (``benchmarks/NOTES.md``).

    Returns:
        No option where the default backend is no CPU, or where its compiler does not know this one, which is
        experimental. ``jax.jit`` takes options only where it is not traced by another.
    """
    if jax.default_backend() != "cpu":
        return {}
    kernels = ["LIBRARY_FUSION_TYPE_REDUCE"]
    if ynnpack_products:
        kernels.append("LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT")
    options: dict[str, str | bool] = {KERNELS: ",".join(kernels)}
    try:
        jax.jit(lambda x: x + 1).lower(0.0).compile(options)
    except jax.errors.JaxRuntimeError:
        return {}
    return options
