"""Checkpoints from nothing: what users of a downloaded one rely on holds for them too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from stages.contract.settings import ScratchModel
from stages.data import digits as task
from stages.models import pretraining, scratch

SMALL = {"layers": 2, "width": 32, "mlp_width": 48, "vision_layers": 1, "vision_width": 32}
SAME_LOSS_TOLERANCE = 1e-5
"""Nats; the same sums in another order."""

QUESTION = task.Question("Read the top row.", "three one four")
EXPECTED_TEXT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Read the top row.<|im_end|>\n"
    "<|im_start|>assistant\nthree one four<|im_end|>\n"
)


@pytest.fixture(scope="module")
def processor() -> Qwen2VLProcessor:
    return scratch.build_processor(task.corpus())


@pytest.fixture(scope="module")
def model(processor: Qwen2VLProcessor) -> Qwen2VLForConditionalGeneration:
    return scratch.build_model(ScratchModel(**SMALL), processor, seed=0)


class TestProcessor:
    """Qwen's tokens and layout, one token a word."""

    def test_a_conversation_is_laid_out_as_qwen2_vl_does(self, processor: Qwen2VLProcessor) -> None:
        assert processor.apply_chat_template(task.messages(QUESTION)) == EXPECTED_TEXT

    def test_a_prompt_ends_where_the_response_begins(self, processor: Qwen2VLProcessor) -> None:
        prompt = processor.apply_chat_template(task.messages(QUESTION)[:1], add_generation_prompt=True)
        assert prompt == EXPECTED_TEXT.removesuffix("three one four<|im_end|>\n")

    def test_a_system_message_of_the_user_replaces_the_default(self, processor: Qwen2VLProcessor) -> None:
        text = processor.apply_chat_template([{"role": "system", "content": "Be brief."}])
        assert text == "<|im_start|>system\nBe brief.<|im_end|>\n"

    def test_special_tokens_follow_the_ordinary_ones_in_qwens_order(self, processor: Qwen2VLProcessor) -> None:
        ids = processor.tokenizer.convert_tokens_to_ids(list(scratch.SPECIAL_TOKENS))
        size = len(processor.tokenizer)
        assert ids == list(range(size - len(ids), size))
        assert (processor.tokenizer.eos_token, processor.tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")

    def test_every_word_of_an_answer_is_one_token(self, processor: Qwen2VLProcessor) -> None:
        answers = [text for index, text in enumerate(task.corpus()) if index % 2]
        assert all(len(processor.tokenizer(text)["input_ids"]) == len(text.split()) for text in answers)

    def test_any_text_survives(self, processor: Qwen2VLProcessor) -> None:
        text = "Zürich, 42 °C: 数字?"
        assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text

    def test_it_is_the_same_whenever_it_is_built(self, processor: Qwen2VLProcessor) -> None:
        again = scratch.build_processor(task.corpus())
        assert again.tokenizer.backend_tokenizer.to_str() == processor.tokenizer.backend_tokenizer.to_str()


class TestModel:
    """A genuine Qwen2-VL of any size."""

    def test_the_configuration_names_the_processors_tokens(
        self, model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor
    ) -> None:
        names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
        names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
        for field, token in names.items():
            assert getattr(model.config, field) == processor.tokenizer.convert_tokens_to_ids(token)
        assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert model.generation_config.pad_token_id == processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def test_teacher_and_backbone_pad_one_vocabulary_to_different_sizes(self, processor: Qwen2VLProcessor) -> None:
        sizes = [
            scratch.build_config(ScratchModel(**SMALL, extra_vocab_rows=rows), processor).text_config.vocab_size
            for rows in (0, 64)
        ]
        assert sizes[1] == sizes[0] + 64
        assert sizes[0] % 64 == 0
        assert 0 <= sizes[0] - len(processor.tokenizer) < 64

    def test_weights_start_large_enough_to_learn_to_see(self, model: Qwen2VLForConditionalGeneration) -> None:
        decoder = model.model.language_model.layers[0].mlp.gate_proj.weight
        vision = model.model.visual.blocks[0].attn.qkv.weight
        assert decoder.std().item() == pytest.approx(32**-0.5, rel=0.1)
        assert vision.std().item() == pytest.approx(32**-0.5, rel=0.1)

    def test_the_seed_decides_the_weights_and_leaves_the_callers_alone(self, processor: Qwen2VLProcessor) -> None:
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        first, again, other = (scratch.build_model(ScratchModel(**SMALL), processor, seed=s) for s in (1, 1, 2))
        assert torch.equal(torch.rand(1), expected)
        assert torch.equal(first.lm_head.weight, again.lm_head.weight)
        assert not torch.equal(first.lm_head.weight, other.lm_head.weight)

    @pytest.mark.parametrize("tied", [False, True])
    def test_a_checkpoint_loads_back_and_generates(
        self, processor: Qwen2VLProcessor, tmp_path: Path, tied: bool
    ) -> None:
        built = scratch.build_model(ScratchModel(**SMALL, tied=tied), processor, seed=0)
        built.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        model = AutoModelForImageTextToText.from_pretrained(tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path)
        assert isinstance(model, Qwen2VLForConditionalGeneration)
        assert isinstance(loaded, Qwen2VLProcessor)
        assert torch.equal(model.lm_head.weight, built.lm_head.weight)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
        prompt = loaded.apply_chat_template(task.messages(QUESTION)[:1], add_generation_prompt=True)
        inputs = loaded(text=[prompt], images=[task.blank_picture()], return_tensors="pt")
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == 6
        output = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
        assert output.shape[1] == inputs["input_ids"].shape[1] + 3

    def test_heads_that_do_not_fit_are_refused_with_the_numbers(self) -> None:
        with pytest.raises(ValidationError, match="width 50, heads 4"):
            ScratchModel(layers=1, width=50, mlp_width=8)
        with pytest.raises(ValidationError, match="vision_width 20 has to be a multiple of 4 x vision_heads = 16"):
            ScratchModel(layers=1, width=32, mlp_width=8, vision_width=20)


class TestPretraining:
    """Packing changes the cost and nothing else; only responses are trained on."""

    @pytest.fixture
    def encoder(self, processor: Qwen2VLProcessor) -> pretraining.Encoder:
        return pretraining.Encoder(processor, task.blank_picture())

    def test_the_response_is_the_answer_and_the_end_of_the_turn(
        self, encoder: pretraining.Encoder, processor: Qwen2VLProcessor
    ) -> None:
        conversation = encoder.conversation(QUESTION)
        response = conversation.rest[-conversation.num_response_tokens :]
        assert processor.tokenizer.decode(response) == "three one four<|im_end|>"
        whole = processor.tokenizer.decode(conversation.prefix + conversation.rest)
        assert whole == EXPECTED_TEXT.replace("<|image_pad|>", "<|image_pad|>" * 6).removesuffix("\n")

    def test_packed_questions_have_the_loss_of_single_conversations(
        self, encoder: pretraining.Encoder, model: Qwen2VLForConditionalGeneration
    ) -> None:
        draws = task.np.random.default_rng(0)
        digits, _ = task.load_digits(1400)
        pictures = [task.draw_picture(digits, draws) for _ in range(2)]
        rows = [[encoder.conversation(task.ask(kind, p, draws)) for kind in task.KINDS] for p in pictures]
        batch = pretraining.pack(rows, pretraining.prefix_positions(model, encoder, rows[0][0].prefix))
        with torch.no_grad():
            hidden = pretraining.hidden_states(model, encoder, pictures, batch)
            packed = pretraining.response_loss(model, hidden, batch).item()
            losses = [
                self.plain_losses(model, encoder, picture, conversation)
                for picture, row in zip(pictures, rows, strict=True)
                for conversation in row
            ]
        assert packed == pytest.approx(torch.cat(losses).mean().item(), abs=SAME_LOSS_TOLERANCE)

    def plain_losses(
        self,
        model: Qwen2VLForConditionalGeneration,
        encoder: pretraining.Encoder,
        picture: task.Picture,
        conversation: pretraining.Conversation,
    ) -> torch.Tensor:
        """[R] nats, through the model's own forward."""
        input_ids = torch.tensor([conversation.prefix + conversation.rest])
        pixel_values, image_grid_thw = encoder.pixels([picture])
        logits = model(
            input_ids=input_ids,
            mm_token_type_ids=(input_ids == model.config.image_token_id).int(),
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
        ).logits[0]
        count = conversation.num_response_tokens
        return F.cross_entropy(logits[-count - 1 : -1], input_ids[0, -count:], reduction="none")

    def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(self) -> None:
        factors = [pretraining.learning_rate_factor(step, steps=100, warmup_steps=10) for step in range(100)]
        assert factors[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
        assert max(factors) == 1
        assert factors[10:] == sorted(factors[10:], reverse=True)
        assert factors[-1] < 0.01
