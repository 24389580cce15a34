"""CoKV: what every KV head contributes to a task, as a cooperative game, and budgets from it.

Sun et al., *CoKV: Optimizing KV Cache Allocation via Cooperative Game*, 2025. ``game`` holds the
formulas, ``drawing`` the coalitions, ``journal`` the state on disk, ``files`` the score files,
``coalitions`` the utility on a model; ``scoring`` joins them. Budgets from scores are in
:mod:`catekv.methods.allocators`, the method in :mod:`catekv.methods.cokv`.
"""
