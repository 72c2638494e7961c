"""DenseNet-190 on CIFAR-100, snapshot ensemble (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/densenet190_se.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100_densenet.py']
algorithm = dict(name='SE', generations=4)
model = dict(network=dict(depth=190))
paper = dict(top1_error=[18.98, 18.12, 16.95, 16.84], best=16.7, ensemble=15.7)
