"""ResNet-32 on CIFAR-100, Snapshot Distillation with T = 2 (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet32_sd_t2.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='SD T=2', generations=4, teacher_weight=1.0, temperature=2.0)
model = dict(network=dict(depth=32))
paper = dict(top1_error=[33.78, 32.07, 31.05, 30.67], best=30.57, ensemble=29.8)
