"""CIFAR-100 for DenseNets (Section 4.1): 300 epochs of batch 64."""

_base_ = 'cifar100.py'

batch_size = 64
epochs = 300
model = dict(network=dict(type='CifarDenseNet', depth=100))
