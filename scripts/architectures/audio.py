"""Audio, time-series and decision models of `transformers`."""

from __future__ import annotations

from typing import Any

import torch

from architectures.family import Family, families, normal, tokens
from architectures.transformers_family import pretrained

WAVE: dict[str, Any] = {"input_values": normal(1, 400)}
MELS = normal(1, 16, 32)
CONV: dict[str, Any] = {
    "conv_dim": [8, 8, 8],
    "conv_stride": [4, 2, 2],
    "conv_kernel": [8, 4, 2],
    "num_feat_extract_layers": 3,
}

AUDIO = families(
    "audio",
    {
        "wav2vec 2.0": pretrained("Wav2Vec2ForCTC", config=CONV, **WAVE),
        "HuBERT": pretrained("HubertForCTC", config=CONV, **WAVE),
        "WavLM": pretrained(
            "WavLMForCTC", config={**CONV, "num_buckets": 8, "max_bucket_distance": 16}, **WAVE
        ),
        "UniSpeech": pretrained("UniSpeechForCTC", config=CONV, **WAVE),
        "UniSpeech-SAT": pretrained("UniSpeechSatForCTC", config=CONV, **WAVE),
        "data2vec audio": pretrained(
            "Data2VecAudioForCTC",
            config={**CONV, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3},
            **WAVE,
        ),
        "SEW": pretrained("SEWForCTC", config=CONV, **WAVE),
        "SEW-D": pretrained(
            "SEWDForCTC", config={**CONV, "position_buckets": 8, "max_position_embeddings": 32}, **WAVE
        ),
        "wav2vec 2.0 Conformer": pretrained(
            "Wav2Vec2ConformerForCTC",
            config={**CONV, "conv_depthwise_kernel_size": 3, "vocab_size": 32},
            **WAVE,
        ),
        "wav2vec2-BERT": pretrained(
            "Wav2Vec2BertForCTC",
            config={
                "vocab_size": 32,
                "feature_projection_input_dim": 12,
                "conv_depthwise_kernel_size": 3,
                "left_max_position_embeddings": 4,
                "right_max_position_embeddings": 2,
            },
            input_features=normal(1, 16, 12),
        ),
        "Whisper": pretrained(
            "WhisperForConditionalGeneration",
            config={"max_source_positions": 16, "num_mel_bins": 16},
            input_features=MELS,
            decoder_input_ids=tokens(1, 5),
        ),
        "Speech2Text": pretrained(
            "Speech2TextForConditionalGeneration",
            config={
                "input_feat_per_channel": 16,
                "conv_channels": 24,
                "num_conv_layers": 2,
                "conv_kernel_sizes": [3, 3],
            },
            input_features=normal(1, 32, 16),
            decoder_input_ids=tokens(1, 5),
        ),
        "AST": pretrained(
            "ASTForAudioClassification",
            config={
                "patch_size": 8,
                "max_length": 32,
                "num_mel_bins": 16,
                "time_stride": 4,
                "frequency_stride": 4,
            },
            input_values=normal(1, 32, 16),
        ),
        "EnCodec decoder": pretrained(
            "EncodecModel",
            config={
                "num_filters": 4,
                "hidden_size": 16,
                "upsampling_ratios": [4, 2],
                "codebook_size": 8,
                "codebook_dim": 16,
                "num_lstm_layers": 1,
                "target_bandwidths": [60.0],
            },
            input_values=normal(1, 1, 64),
        ),
        "DAC": pretrained(
            "DacModel",
            config={
                "encoder_hidden_size": 4,
                "decoder_hidden_size": 16,
                "downsampling_ratios": [2, 2],
                "upsampling_ratios": [2, 2],
                "n_codebooks": 2,
                "codebook_size": 8,
                "codebook_dim": 4,
            },
            input_values=normal(1, 1, 64),
        ),
        "Moonshine": pretrained(
            "MoonshineForConditionalGeneration", input_values=normal(1, 2048), decoder_input_ids=tokens(1, 5)
        ),
        "UnivNet": pretrained(
            "UnivNetModel",
            config={
                "model_in_channels": 8,
                "model_hidden_channels": 8,
                "num_mel_bins": 8,
                "resblock_kernel_sizes": [3],
                "resblock_stride_sizes": [2],
                "resblock_dilation_sizes": [[1, 3]],
                "kernel_predictor_hidden_channels": 8,
            },
            input_features=normal(1, 8, 8),
            noise_sequence=normal(1, 8, 8),
        ),
        "HiFi-GAN": pretrained(
            "SpeechT5HifiGan",
            config={
                "model_in_dim": 8,
                "upsample_initial_channel": 16,
                "upsample_rates": [2, 2],
                "upsample_kernel_sizes": [4, 4],
                "resblock_kernel_sizes": [3],
                "resblock_dilation_sizes": [[1, 3]],
            },
            spectrogram=normal(1, 12, 8),
        ),
        "SpeechT5": pretrained(
            "SpeechT5ForSpeechToText",
            config={**CONV, "positional_conv_kernel_size": 4},
            decoder_input_ids=tokens(1, 5),
            **WAVE,
        ),
        "Parakeet CTC": pretrained("ParakeetForCTC", input_features=normal(1, 32, 16)),
        "CLAP audio": pretrained(
            "ClapAudioModel",
            config={
                "spec_size": 32,
                "num_mel_bins": 16,
                "window_size": 2,
                "patch_embeds_hidden_size": 8,
                "depths": [1, 1],
                "num_attention_heads": [2, 2],
                "patch_size": 4,
                "patch_stride": [4, 4],
                "enable_fusion": False,
                "hidden_size": 16,
            },
            input_features=normal(1, 1, 64, 16),
            is_longer=torch.tensor([[False]]),
        ),
    },
)

SERIES = families(
    "time series and decisions",
    {
        "PatchTST": pretrained(
            "PatchTSTForPrediction",
            config={
                "context_length": 16,
                "patch_length": 4,
                "patch_stride": 4,
                "num_input_channels": 2,
                "prediction_length": 4,
            },
            past_values=normal(2, 16, 2),
        ),
        "PatchTSMixer": pretrained(
            "PatchTSMixerForPrediction",
            config={
                "context_length": 16,
                "patch_length": 4,
                "patch_stride": 4,
                "num_input_channels": 2,
                "prediction_length": 4,
                "d_model": 16,
            },
            past_values=normal(2, 16, 2),
        ),
        "Decision Transformer": pretrained(
            "DecisionTransformerModel",
            config={"state_dim": 5, "act_dim": 2, "hidden_size": 32},
            states=normal(1, 4, 5),
            actions=normal(1, 4, 2),
            rewards=normal(1, 4, 1),
            returns_to_go=normal(1, 4, 1),
            timesteps=torch.arange(4)[None],
            attention_mask=torch.ones(1, 4),
        ),
        "Informer": pretrained(
            "InformerModel",
            config={
                "prediction_length": 4,
                "context_length": 8,
                "lags_sequence": [1, 2],
                "num_time_features": 1,
                "distil": True,
            },
            past_values=normal(2, 10),
            past_time_features=normal(2, 10, 1),
            past_observed_mask=torch.ones(2, 10),
            future_values=normal(2, 4),
            future_time_features=normal(2, 4, 1),
        ),
        "Autoformer": pretrained(
            "AutoformerModel",
            config={
                "prediction_length": 4,
                "context_length": 8,
                "lags_sequence": [1, 2],
                "num_time_features": 1,
                "moving_average": 3,
                "label_length": 4,
            },
            past_values=normal(2, 10),
            past_time_features=normal(2, 10, 1),
            past_observed_mask=torch.ones(2, 10),
            future_values=normal(2, 4),
            future_time_features=normal(2, 4, 1),
        ),
        "Time Series Transformer": pretrained(
            "TimeSeriesTransformerModel",
            config={
                "prediction_length": 4,
                "context_length": 8,
                "lags_sequence": [1, 2],
                "num_time_features": 1,
            },
            past_values=normal(2, 10),
            past_time_features=normal(2, 10, 1),
            past_observed_mask=torch.ones(2, 10),
            future_values=normal(2, 4),
            future_time_features=normal(2, 4, 1),
        ),
        "TimesFM": pretrained(
            "TimesFmModel",
            config={
                "patch_length": 4,
                "context_length": 16,
                "horizon_length": 4,
                "hidden_size": 32,
                "head_dim": 8,
            },
            past_values=normal(2, 16),
            past_values_padding=torch.zeros(2, 16),
            freq=torch.zeros(2, 1, dtype=torch.long),
        ),
    },
)

FAMILIES: list[Family] = [*AUDIO, *SERIES]
