"""What every run has in common: logs, checkpoints, record, seed."""

default_scope = 'mmengine'
label = ''  # the row of this run in tables; empty: the name of the algorithm
randomness = dict(seed=0)
# 'bf16', 'float32' or 'auto': bf16 where the GPU (Ampere or later) or the CPU (AVX512-BF16 or AMX)
# has the hardware, float32 elsewhere. Loss, statistics and metrics are always float32. TF32 is off
# for convolutions and matrix products.
precision = 'auto'
# Micro-batches (gradient accumulation) in which a process computes its share of a batch, to save
# memory. An iteration is still one update; batch normalisation sees one micro-batch at a time.
micro_batches = 1
default_hooks = dict(
    runtime_info=dict(type='DeferredLogHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='SaveHook', minutes=15),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    record=dict(type='RunRecordHook'),
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(
    type='ProgressLine',
    window_size=50,
    by_epoch=True,
    # A training line shows the mean over the window of these values, and the last of all others.
    mean_pattern=r'loss|time|grad_norm|acc|cross_entropy|^(train/)?(kl|error)$',
)
log_level = 'INFO'
load_from = None
resume = False
