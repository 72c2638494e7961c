"""ImageNet classification as in Section 4.2: ResNet, 224 pixels, 90 epochs of batch 256."""

_base_ = 'classification.py'

data_root = 'data/imagenet'  # holds train/<class>/ and val/<class>/
skip_unusable = False  # True: skip images that cannot be used, such as truncated ones
image_size = 224
batch_size = 256  # over all processes
epochs = 90
model = dict(
    data_preprocessor=dict(
        type='AugmentingPreprocessor',
        non_blocking=True,  # copy to the device while it computes
        mean=[123.675, 116.28, 103.53],  # RGB, the order in which the loader decodes
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
