"""``python -m kanpinn.kernels``: compile the kernels now instead of at their first use."""

from kanpinn.kernels.library import kernels

print(kernels(tell=print).description)
