"""Decode attention over a quantised prefix and a dense tail: the definition and the torch path.

Both are those of :mod:`catekv.kernels.ragged_decode`, which ask the prefix for its rows. The
definition reads the entries in float32, as the codes mean them; the torch path unpacks one bucket
of rows at a time to the model's type, into scratch memory that all layers share.
"""

from catekv.kernels.ragged_decode import ragged_decode_reference, ragged_decode_torch

quantised_decode_reference = ragged_decode_reference
quantised_decode_torch = ragged_decode_torch
