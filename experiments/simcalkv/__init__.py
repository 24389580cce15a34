"""SimCalKV's own evaluation: a prompt with and without compression, and what explains the gap.

:mod:`~experiments.simcalkv.compare` is the command with the published flags, :mod:`~.sweep` goes over
ratios, :mod:`~.analyses` and :mod:`~.step_error` look at attention and keys. The method itself is
:mod:`catekv.methods.simcalkv`.
"""
