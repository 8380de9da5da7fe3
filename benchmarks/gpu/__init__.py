"""What only a GPU shows, in one command of a few minutes: ``python -m benchmarks.gpu``.

The checks (:mod:`.checks`, which the tests marked ``gpu`` run too), then figures beside timm where
it is installed (:mod:`.figures`). It needs torch, safetensors and huggingface_hub, nothing else.
"""
