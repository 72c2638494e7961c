"""DenseNet-100 on CIFAR-100, Snapshot Distillation with T = 2 (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/densenet100_sd_t2.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100_densenet.py']
algorithm = dict(name='SD T=2', generations=4, teacher_weight=1.0, temperature=2.0)
paper = dict(top1_error=[24.31, 23.1, 22.06, 21.78], best=21.59, ensemble=20.27)
