"""DenseNet-190 on CIFAR-100, Snapshot Distillation with T = 2 (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/densenet190_sd_t2.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100_densenet.py']
algorithm = dict(name='SD T=2', generations=4, teacher_weight=1.0, temperature=2.0)
model = dict(network=dict(depth=190))
paper = dict(top1_error=[18.98, 17.48, 16.32, 18.02], best=16.06, ensemble=15.72)
