"""ResNet-18 on 100 classes of Tiny-ImageNet (50,000 images of 64 pixels), for two CPU cores."""

_base_ = 'imagenet.py'
data_root = 'data/tiny-imagenet-100'
image_size = 64
epochs = 24
batch_size = 128
model = dict(network=dict(depth=18, num_classes=100))
train_dataloader = dict(num_workers=0, dataset=dict(crop_area=(0.25, 1.0)))
val_dataloader = dict(num_workers=0)
