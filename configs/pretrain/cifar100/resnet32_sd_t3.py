"""ResNet-32 on CIFAR-100, Snapshot Distillation with T = 3 (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet32_sd_t3.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='SD T=3', generations=4, teacher_weight=1.0, temperature=3.0)
model = dict(network=dict(depth=32))
paper = dict(top1_error=[33.78, 31.52, 30.64, 30.32], best=30.16, ensemble=28.71)
