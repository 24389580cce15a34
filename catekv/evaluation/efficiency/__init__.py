"""Speed and memory of full attention and of compressed caches, measured side by side.

``measure`` times decode steps of several variants at one length, ``throughput`` finds the largest
batch that fits, ``breakdown`` says where a step goes, ``fill`` makes caches without a prefill.
"""
