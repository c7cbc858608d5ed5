"""Fixtures of the kernels' tests; see `kernel_fixtures`."""

import kernel_fixtures

kernel_fixtures.interpreted("fastcifar.models.norm_fused")
device, run_script, check_registers = kernel_fixtures.device, kernel_fixtures.run_script, kernel_fixtures.check_registers
