"""Key names of other fine-tuning tools, and the sftpipe key that does the same.

Typing one of these names is an error, and the error names our key. docs/migrating.md publishes the
table, and tests/config keeps both equal. The names were read from each tool's public
documentation and sources.

A target is one of
    "lora.r"            a key of ours
    "quantization=nf4"  an option of a group
    "packing"           a group, where the other tool's value decides which option is meant

A name with dots is the whole path in the other tool. Where two tools share a last part, both have
one target.
"""

from __future__ import annotations

SYNONYMS: dict[str, dict[str, str]] = {
    "axolotl": {
        # model and tokenizer
        "base_model": "model.name_or_path",
        "revision_of_model": "model.revision",
        "attn_implementation": "model.attn_implementation",
        "flash_attention": "model.attn_implementation",
        "sdp_attention": "model.attn_implementation",
        "bf16": "model.dtype",
        "fp16": "model.dtype",
        "tokenizer_config": "tokenizer.name_or_path",
        "special_tokens.pad_token": "tokenizer.pad_token",
        "chat_template": "tokenizer.chat_template",
        # quantization
        "load_in_4bit": "quantization=nf4",
        "load_in_8bit": "quantization=int8",
        "bnb_config_kwargs": "quantization",
        # LoRA
        "adapter": "lora=default",
        "lora_r": "lora.r",
        "lora_alpha": "lora.lora_alpha",
        "lora_dropout": "lora.lora_dropout",
        "lora_model_dir": "lora.init_from",
        "lora_target_modules": "lora.target_modules",
        "lora_target_linear": "lora.target_modules",
        "lora_modules_to_save": "lora.modules_to_save",
        "peft_layers_to_transform": "lora.layers_to_transform",
        "peft_use_dora": "lora.use_dora",
        "peft_use_rslora": "lora.use_rslora",
        "peft_init_lora_weights": "lora.init_lora_weights",
        # data
        "datasets": "dataset",
        "val_set_size": "dataset.validation_size",
        "dataset_processes": "dataset.num_proc",
        "default_system_message": "format.system",
        "sequence_len": "sft.max_length",
        "excess_length_strategy": "over_length",
        "sample_packing": "packing",
        # loss
        "train_on_inputs": "loss=full",
        # optimisation and schedule
        "micro_batch_size": "sft.per_device_train_batch_size",
        "eval_batch_size": "sft.per_device_eval_batch_size",
        "gradient_accumulation_steps": "sft.gradient_accumulation_steps",
        "num_epochs": "sft.num_train_epochs",
        "learning_rate": "sft.learning_rate",
        "lr_scheduler": "sft.lr_scheduler_type",
        "warmup_ratio": "sft.warmup_steps",
        "optimizer": "sft.optim",
        "gradient_checkpointing": "sft.activation_checkpointing",
        "group_by_length": "sft.train_sampling_strategy",
        # saving and tracking
        "save_steps": "sft.save_steps",
        "auto_resume_from_checkpoints": "sft.resume_from_checkpoint",
        "wandb_project": "tracking.project",
        "wandb_entity": "tracking.entity",
        "wandb_mode": "tracking.mode",
    },
    "LLaMA-Factory": {
        # model and tokenizer
        "model_name_or_path": "model.name_or_path",
        "model_revision": "model.revision",
        "flash_attn": "model.attn_implementation",
        "bf16": "model.dtype",
        "template": "tokenizer.chat_template",
        # quantization
        "quantization_bit": "quantization",
        "quantization_type": "quantization.bnb_4bit_quant_type",
        "double_quantization": "quantization.bnb_4bit_use_double_quant",
        # LoRA
        "finetuning_type": "lora",
        "lora_rank": "lora.r",
        "lora_alpha": "lora.lora_alpha",
        "lora_dropout": "lora.lora_dropout",
        "lora_target": "lora.target_modules",
        "adapter_name_or_path": "lora.init_from",
        "additional_target": "lora.modules_to_save",
        "use_dora": "lora.use_dora",
        "use_rslora": "lora.use_rslora",
        "pissa_init": "lora.init_lora_weights",
        # data
        "val_size": "dataset.validation_size",
        "max_samples": "dataset.limit",
        "preprocessing_num_workers": "dataset.num_proc",
        "default_system": "format.system",
        "cutoff_len": "sft.max_length",
        "packing": "packing",
        "neat_packing": "packing",
        # loss
        "train_on_prompt": "loss=full",
        "mask_history": "loss=completion_only",
        # optimisation and schedule
        "per_device_train_batch_size": "sft.per_device_train_batch_size",
        "per_device_eval_batch_size": "sft.per_device_eval_batch_size",
        "gradient_accumulation_steps": "sft.gradient_accumulation_steps",
        "num_train_epochs": "sft.num_train_epochs",
        "max_steps": "sft.max_steps",
        "learning_rate": "sft.learning_rate",
        "lr_scheduler_type": "sft.lr_scheduler_type",
        "warmup_steps": "sft.warmup_steps",
        "warmup_ratio": "sft.warmup_steps",
        "optim": "sft.optim",
        "weight_decay": "sft.weight_decay",
        "max_grad_norm": "sft.max_grad_norm",
        "neftune_noise_alpha": "sft.neftune_noise_alpha",
        "disable_gradient_checkpointing": "sft.activation_checkpointing",
        # evaluation, saving and tracking
        "eval_strategy": "sft.eval_strategy",
        "eval_steps": "sft.eval_steps",
        "logging_steps": "sft.logging_steps",
        "save_steps": "sft.save_steps",
        "resume_from_checkpoint": "sft.resume_from_checkpoint",
        "overwrite_output_dir": "output_dir",
        "report_to": "tracking",
    },
    "TRL CLI": {
        # model and tokenizer
        "model_name_or_path": "model.name_or_path",
        "model_revision": "model.revision",
        "dtype": "model.dtype",
        "torch_dtype": "model.dtype",
        "attn_implementation": "model.attn_implementation",
        "chat_template_path": "tokenizer.chat_template",
        # quantization
        "load_in_4bit": "quantization=nf4",
        "load_in_8bit": "quantization=int8",
        "bnb_4bit_quant_type": "quantization.bnb_4bit_quant_type",
        "use_bnb_nested_quant": "quantization.bnb_4bit_use_double_quant",
        # LoRA
        "use_peft": "lora=default",
        "lora_r": "lora.r",
        "lora_alpha": "lora.lora_alpha",
        "lora_dropout": "lora.lora_dropout",
        "lora_target_modules": "lora.target_modules",
        "lora_modules_to_save": "lora.modules_to_save",
        "use_dora": "lora.use_dora",
        "use_rslora": "lora.use_rslora",
        # data
        "dataset_name": "dataset.path",
        "dataset_config": "dataset.name",
        "dataset_train_split": "dataset.split",
        "dataset_num_proc": "dataset.num_proc",
        "max_length": "sft.max_length",
        "max_seq_length": "sft.max_length",
        "truncation_mode": "over_length",
        "packing_strategy": "packing",
        "padding_free": "packing",
        # loss
        "completion_only_loss": "loss=completion_only",
        "assistant_only_loss": "loss",
        # optimisation and schedule
        "per_device_train_batch_size": "sft.per_device_train_batch_size",
        "gradient_accumulation_steps": "sft.gradient_accumulation_steps",
        "num_train_epochs": "sft.num_train_epochs",
        "learning_rate": "sft.learning_rate",
        # tracking
        "report_to": "tracking",
    },
    "torchtune": {
        # model and tokenizer
        "checkpointer.checkpoint_dir": "model.name_or_path",
        "dtype": "model.dtype",
        "tokenizer.path": "tokenizer.name_or_path",
        # quantization
        "model.quantize_base": "quantization=nf4",
        # LoRA
        "model.lora_rank": "lora.r",
        "model.lora_alpha": "lora.lora_alpha",
        "model.lora_dropout": "lora.lora_dropout",
        "model.lora_attn_modules": "lora.target_modules",
        "model.apply_lora_to_mlp": "lora.target_modules",
        "model.use_dora": "lora.use_dora",
        # data
        "dataset.source": "dataset.path",
        "dataset.column_map": "dataset.columns",
        "dataset.new_system_prompt": "format.system",
        "tokenizer.max_seq_len": "sft.max_length",
        "dataset.packed": "packing",
        # loss
        "dataset.train_on_input": "loss=full",
        # optimisation and schedule
        "batch_size": "sft.per_device_train_batch_size",
        "gradient_accumulation_steps": "sft.gradient_accumulation_steps",
        "epochs": "sft.num_train_epochs",
        "optimizer.lr": "sft.learning_rate",
        "lr_scheduler.num_warmup_steps": "sft.warmup_steps",
        "clip_grad_norm": "sft.max_grad_norm",
        "enable_activation_checkpointing": "sft.activation_checkpointing",
        "compile": "sft.torch_compile",
        # evaluation, saving and tracking
        "run_val_every_n_steps": "sft.eval_steps",
        "log_every_n_steps": "sft.logging_steps",
        "metric_logger.project": "tracking.project",
    },
    "torchrun and accelerate": {
        "nproc_per_node": "distributed.num_processes",
        "nnodes": "distributed.num_machines",
        "node_rank": "distributed.machine_rank",
        "master_addr": "distributed.rendezvous",
        "master_port": "distributed.rendezvous",
        "rdzv_endpoint": "distributed.rendezvous",
        "main_process_ip": "distributed.rendezvous",
        "main_process_port": "distributed.rendezvous",
        "use_fsdp": "distributed=fsdp2",
        "device_map": "distributed",
    },
}
