from tests.comfy.test_parity import *
def test_m(in_graph, api_video, api, pictures, latents):
    for n in CASES: print(n, (in_graph[n]-api_video(n)).abs().max().item(), ((api_video(n)>.02)&(api_video(n)<.98)).float().mean().item())
    o,k=in_graph["stock ours"].flatten(), in_graph["stock ksampler"].flatten()
    print(torch.corrcoef(torch.stack([o,k]))[0,1].item(), ((o-k).norm()/o.norm()).item(), relative_error(in_graph["stock aligned"],in_graph["stock ours"]))
    with torch.no_grad():
        print(relative_error(in_graph["prompts"], api.text_encoder(PROMPTS)))
        print(relative_error(in_graph["encoded"], api.vae.encode(images_to_frames(pictures)) / 0.18215), relative_error(in_graph["decoded"],api.vae.decode(latents * 0.18215).add(1).div(2).clamp(0, 1).movedim(1, 3)))
