"""What the tensors of a ResNet do not tell, and a user may have to state."""

STYLES = ('pytorch', 'caffe')
# In 0-255 units, in the order of the channels. 'inception' is timm's name for 0.5.
PREPROCESSINGS = {
    'imagenet-rgb': dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], channel_order='RGB'
    ),
    'inception-rgb': dict(mean=[127.5] * 3, std=[127.5] * 3, channel_order='RGB'),
    'caffe-bgr': dict(mean=[103.53, 116.28, 123.675], std=[1.0] * 3, channel_order='BGR'),
}
