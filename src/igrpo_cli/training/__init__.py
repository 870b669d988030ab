"""The update: groups of completions in, a new policy directory out.

packing      the groups of a step as flat arrays, and as rows in which a prompt is computed once
attention    attention over these rows
policy       a model directory as a trainable body and its output head
logprobs     log-probs and entropy of tokens without holding all logits
step         one optimiser step over a batch
offload      float32 weights, gradients and Adam's moments in host memory
optimizer    AdamW and gradient clipping
metrics      metrics of a step and the audit of its completions
ranks        the processes of an update with torchrun
adapters     LoRA
checkpoint   policies and optimiser states as safetensors
restore      the trainer on disk
live_memory  the memory of a computation on fake tensors
memory       the memory that an update will take
"""
