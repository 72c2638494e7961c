"""ResNet-32 on CIFAR-100, snapshot ensemble (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet32_se.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='SE', generations=4)
model = dict(network=dict(depth=32))
paper = dict(top1_error=[33.78, 32.15, 31.41, 30.74], best=30.51, ensemble=28.93)
