"""Choices for facts that the tensors of a ResNet do not show: stride style and preprocessing."""

STYLES = ('pytorch', 'caffe')
# For pixels in 0-255, in channel order. timm calls a mean and std of 0.5 (of 0-1) 'inception'.
PREPROCESSINGS = {
    'imagenet-rgb': dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], channel_order='RGB'
    ),
    'inception-rgb': dict(mean=[127.5] * 3, std=[127.5] * 3, channel_order='RGB'),
    'caffe-bgr': dict(mean=[103.53, 116.28, 123.675], std=[1.0] * 3, channel_order='BGR'),
}
