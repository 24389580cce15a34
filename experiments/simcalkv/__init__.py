"""SimCalKV's own evaluation: a prompt with and without compression, and what explains the gap.

``compare`` is the command with the published flags, ``sweep_command`` goes over ratios,
``analyses`` and ``step_error`` look at attention and keys. The method itself is
:mod:`catekv.methods.simcalkv`.
"""
