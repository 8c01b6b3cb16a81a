//! A list of tensors of `torch.save`, in pickle.
#![no_main]

imp_flow_fuzz::target!("pickle");
