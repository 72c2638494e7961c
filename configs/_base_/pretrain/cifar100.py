"""CIFAR-100 as in Section 4.1: 32 pixels; training crops (padding 4) and flips the images."""

_base_ = 'classification.py'

data_root = 'data/cifar-100-python'
batch_size = 128  # over all processes
epochs = 164
cuda_graph = True
model = dict(
    data_preprocessor=dict(mean=[129.3, 124.1, 112.4], std=[68.2, 65.4, 70.4]),
    network=dict(type='CifarResNet', depth=20, num_classes=100),
)
# The images are on the device, where the data set makes a whole batch at once: no workers.
train_dataloader = dict(
    num_workers=0,
    drop_last=False,
    collate_fn=dict(type='whole_batch'),
    sampler=dict(type='EpochSampler', shuffle=True),
    dataset=dict(type='Cifar100', images=None),  # images: a smaller number, for a shortened run
)
val_dataloader = dict(
    num_workers=0,
    collate_fn=dict(type='whole_batch'),
    sampler=dict(type='EpochSampler', shuffle=False),
    dataset=dict(type='Cifar100'),
)
