"""ResNet-110 on CIFAR-100, Snapshot Distillation with T = 3 (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet110_sd_t3.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='SD T=3', generations=4, teacher_weight=1.0, temperature=3.0)
model = dict(network=dict(depth=110))
paper = dict(top1_error=[31.89, 29.22, 28.37, 27.87], best=27.75, ensemble=26.19)
