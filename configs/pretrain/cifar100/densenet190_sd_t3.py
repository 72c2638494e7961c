"""DenseNet-190 on CIFAR-100, Snapshot Distillation with T = 3 (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/densenet190_sd_t3.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100_densenet.py']
algorithm = dict(name='SD T=3', generations=4, teacher_weight=1.0, temperature=3.0)
model = dict(network=dict(depth=190))
paper = dict(top1_error=[18.98, 17.67, 16.95, 18.65], best=16.33, ensemble=15.92)
