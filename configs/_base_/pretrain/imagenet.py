"""ImageNet classification as in Section 4.2: ResNet, 224 pixels, batch 256, SGD with Nesterov."""

task = 'classification'
data_root = 'data/imagenet'  # holds train/<class>/ and val/<class>/
image_size = 224
batch_size = 256  # over all processes
model = dict(
    type='SnapshotClassifier',
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],  # RGB, as the loader decodes
        std=[58.395, 57.12, 57.375],
    ),
    network=dict(type='ResNet', depth=50, num_classes=1000),
)
train_dataloader = dict(
    num_workers=8,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='EpochSampler', shuffle=True),
    dataset=dict(type='ClassFolder', crop_area=(0.08, 1.0)),
)
val_dataloader = dict(
    num_workers=8,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='EpochSampler', shuffle=False),
    dataset=dict(type='ClassFolder'),
)
val_evaluator = dict(type='TopKError')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True),
)
train_cfg = dict(type='EpochBasedTrainLoop', val_interval=1)
val_cfg = dict(type='ValLoop')
