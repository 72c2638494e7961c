"""DenseNet-100 on CIFAR-100, snapshot ensemble (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/densenet100_se.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100_densenet.py']
algorithm = dict(name='SE', generations=4)
paper = dict(top1_error=[24.31, 22.76, 22.16, 22.18], best=22.0, ensemble=19.63)
