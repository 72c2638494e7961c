"""ResNet-18 on the built-in images at 48 pixels: the ImageNet recipe scaled down for the demo."""

_base_ = 'imagenet.py'
data_root = 'data/builtin/imagenet'
image_size = 48
epochs = 6
batch_size = 32
model = dict(network=dict(depth=18, num_classes=20))
optim_wrapper = dict(optimizer=dict(lr=0.03))
train_dataloader = dict(num_workers=0, dataset=dict(crop_area=(0.7, 1.0)))
val_dataloader = dict(num_workers=0)
