# Settings of data sets and schedules, as bash arrays; sourced by the launchers. A later flag overrides an earlier one:
# PAPER, then SCHEDULE_name, DATASET_name, DATASET_name_schedule, NETWORK_dataset_name (NETWORK=name in the environment),
# then what stands on the command line.
# A data set needs no entry here: any other name trains on the pairs in DATA_DIR with PAPER's settings.

# Zhou et al. 2023 (DDBM) and Lu, Szabados, Yu (SPDM). Channel multipliers follow from the image size:
# 256: 1,1,2,2,4,4; 128: 1,1,2,3,4; 64 and 32: 1,2,3,4.
PAPER=(
    --attention_resolutions 32,16,8 --num_head_channels 64 --dropout 0.1
    --lr 1e-4 --ema_rate 0.9999 --sigma_data 0.5 --cov_xy 0
)

SCHEDULE_ve=(--schedule ve --sigma_max 80 --sigma_min 0.002)
SCHEDULE_vp=(--schedule vp --beta_d 2 --beta_min 0.1)
SCHEDULE_ve_simple=(--schedule ve_simple --sigma_max 80 --sigma_min 0.002)
SCHEDULE_vp_simple=(--schedule vp_simple --beta_d 2 --beta_min 0.1)
SCHEDULE_linear=(--schedule linear --gamma_max 0.125)
SCHEDULE_i2sb=(--schedule i2sb --beta_min 0.1 --beta_max 0.3)

# Virtual staining on the photomicrograph that ships with scikit-image; sized for a CPU.
DATASET_histology=(
    --image_size 32 --model_channels 32 --num_res_blocks 1 --num_head_channels 32 --attention_resolutions 8
    --layers tied --group D4 --augment D4 --batch_size 16 --total_steps 1400 --optimizer adam --lr 7e-4 --dropout 0
    --lr_warmup_steps 50 --val_interval 200 --save_interval 200 --ema_interval 4 --ema_snapshots 32
)

# Salt-and-pepper noise off the same picture. Targets and sources vary by 0.4 and 0.8, together by 0.09: such a network
# begins near the linear answer.
DATASET_denoising=("${DATASET_histology[@]}" --sigma_data 0.6 --cov_xy 0.08 --total_steps 1100)

# A fundus photograph, blurred and noisy, which ships with scikit-image: between pixels, and between the latents of an
# autoencoder that is trained first. Sized for a CPU. Sources are almost targets, in latents even more so: with their
# covariances the networks begin near the linear answer.
DATASET_retina=(
    --image_size 256 --model_channels 16 --channel_mult 1,1,2,2,4 --num_res_blocks 1 --num_head_channels 32
    --attention_resolutions 16 --layers tied --group D4 --augment D4 --batch_size 4 --total_steps 1050 --optimizer adam
    --lr 1e-3 --lr_warmup_steps 50 --dropout 0 --val_interval 200 --save_interval 200 --ema_interval 4 --ema_snapshots 32
    --sigma_data 0.555 --cov_xy 0.296
)
DATASET_retina_latent=(
    "${DATASET_histology[@]}" --image_size 256 --codec auto --batch_size 4 --total_steps 1600 --cov_xy 0.249
)

# edges2handbags: side by side, the edges on the left. DDBM flips both images at random: --augment H (docs/data.md).
DATASET_e2h=(
    --layout side_by_side --source_half left --image_size 64
    --model_channels 192 --num_res_blocks 3 --batch_size 192 --workers 4
)

# DIODE outdoor: NAME_normal.png is the source of NAME.png; DDBM flips likewise.
DATASET_diode=(
    --layout suffix --source_suffix _normal --image_size 256
    --model_channels 256 --num_res_blocks 2 --batch_size 16 --workers 4
)
DATASET_diode_ve=(--sigma_max 20 --sigma_min 0.0005)
DATASET_diode_ve_simple=("${DATASET_diode_ve[@]}")

# LYSTO lymphocyte patches, 64x64.
DATASET_lysto64=(
    --image_size 64 --model_channels 128 --num_res_blocks 3 --batch_size 32 --workers 4
    --layers tied --group C4 --augment C4
)

# CT -> PET, left and right alike.
DATASET_ct_pet=(
    --image_size 256 --model_channels 128 --num_res_blocks 2 --batch_size 16 --workers 4
    --layers tied --group H --augment H
)
DATASET_ct_pet_ve=("${DATASET_diode_ve[@]}")
DATASET_ct_pet_ve_simple=("${DATASET_diode_ve[@]}")

# Between the latents of an autoencoder that is trained first (--codec auto), 64x64 each. FIVES: fundus photographs of
# 2048x2048 and the masks of their vessels, trained on patches; ANHIR: consecutive sections in two stains.
LATENT=(
    --model_channels 128 --channel_mult 1,2,3,4 --num_res_blocks 2 --attention_resolutions 16,8 --batch_size 16
    --workers 4 --codec auto
)
DATASET_fives=(--image_size 512 --fit crop "${LATENT[@]}" --layers tied --group D4 --augment D4)
DATASET_anhir=(--image_size 256 --fit crop "${LATENT[@]}" --layers tied --group D4 --augment D4)
DATASET_ct_pet_latent=("${DATASET_ct_pet[@]}" "${LATENT[@]}")
DATASET_ct_pet_latent_ve=("${DATASET_diode_ve[@]}")
DATASET_ct_pet_latent_ve_simple=("${DATASET_diode_ve[@]}")

# Autoencoders (scripts/train_codec.sh): CODEC_name has the flags for a data set.
CODEC_histology=(
    --image_size 32 --factor 4 --model_channels 32 --num_res_blocks 1 --augment D4 --batch_size 16 --total_steps 1000
    --optimizer adam --lr 1e-3 --lr_warmup_steps 50 --val_interval 250 --save_interval 250
)

CODEC_retina_latent=(
    --image_size 64 --factor 4 --latent_channels 8 --model_channels 16 --channel_mult 1,2,4 --num_res_blocks 1
    --layers regular --group D4 --augment D4 --batch_size 8 --total_steps 1000 --optimizer adam --lr 1e-3
    --lr_warmup_steps 50 --val_interval 250 --save_interval 250
)
CODEC_fives=(
    --image_size 256 --fit crop --factor 8 --latent_channels 4 --model_channels 64 --layers regular --group D4
    --augment D4 --batch_size 16 --total_steps 50000 --lr 1e-4 --lr_warmup_steps 1000 --workers 4
)
CODEC_anhir=("${CODEC_fives[@]}" --factor 4)
CODEC_ct_pet_latent=("${CODEC_anhir[@]}" --fit resize --group H --augment H)

# A published AutoencoderKL that is trained further (--from_kl): SPDM's weights of squared error and LPIPS, and the usual
# KL. SPDM's LPIPS is that of AlexNet (--perceptual alexnet).
KL_TUNING=(--l1_weight 0 --l2_weight 0.5 --kl_weight 1e-6 --perceptual_weight 0.002 --lr 1e-5)

# Without symmetry, or with augmentation alone; and group convolutions: with as many channels (1/|G| of the weights), and with about as many parameters.
NETWORK_histology_plain=(--layers plain --group none --augment none)
NETWORK_histology_augment=(--layers plain --group none)
NETWORK_histology_regular=(--layers regular)
NETWORK_histology_regular_wide=(--layers regular --model_channels 88 --num_head_channels 88)
NETWORK_denoising_plain=("${NETWORK_histology_plain[@]}")
NETWORK_denoising_augment=("${NETWORK_histology_augment[@]}")
NETWORK_denoising_regular=("${NETWORK_histology_regular[@]}")
NETWORK_denoising_regular_wide=("${NETWORK_histology_regular_wide[@]}")
NETWORK_lysto64_plain=(--layers plain --group none --augment none)
NETWORK_lysto64_augment=(--layers plain --group none)
NETWORK_lysto64_regular=(--layers regular)
NETWORK_lysto64_regular_wide=(--layers regular --model_channels 256)
NETWORK_ct_pet_plain=(--layers plain --group none --augment none)
NETWORK_ct_pet_augment=(--layers plain --group none)
NETWORK_ct_pet_regular=(--layers regular)
NETWORK_ct_pet_regular_wide=(--layers regular --model_channels 180 --num_head_channels 90)
