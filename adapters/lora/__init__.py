"""LoRA adapters as PEFT writes them: bring one into a bank as an expert, take a task's experts out as one."""
