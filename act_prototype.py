import ctypes, time, statistics as st, sys, torch, torch.nn.functional as F
sys.path.insert(0,'/work/main')
from k24lab.config import build_config
from k24lab.marl.agents import build_agent, step, LAYERS
from k24lab.sparsity.masks import argmax_masks
torch.set_num_threads(1); torch.manual_seed(0)
L=ctypes.CDLL("./act.so")
class M(ctypes.Structure):
    _fields_=[("values",ctypes.c_void_p),("words",ctypes.c_void_p),("bias",ctypes.c_void_p)]+[(n,ctypes.c_int64) for n in ("rows","groups","pv","pw","pb")]
keep=[]
def pad_to(w,rows,cols): return F.pad(w,(0,cols-w.shape[-1],0,rows-w.shape[-2]))
def pack(W,bias,gates,sparse=True):  # W [K,out,in]
    K,o,i=W.shape; per=o//gates; R=-(-per//8)*8*gates; G=-(-i//4)
    Wp=torch.stack([pad_to(x,R//gates,4*G) for x in W.reshape(K*gates,per,i)]).reshape(K,R,4*G)
    bp=F.pad(bias.reshape(-1,gates,per),(0,R//gates-per)).reshape(-1,R).contiguous()
    blocks=R//8; keep.append(bp)
    if not sparse:
        v=Wp.reshape(K,blocks,8,4*G).transpose(2,3).contiguous(); keep.append(v)
        return M(v.data_ptr(),None,bp.data_ptr(),R,G,0 if K==1 else v[0].numel(),0,0 if len(bp)==1 else R)
    g=Wp.reshape(K,R,G,4); pos=(g!=0).to(torch.int8).argsort(dim=-1,descending=True,stable=True)[...,:2].sort(-1).values
    v=g.gather(-1,pos)
    assert (v.ne(0).sum()==g.ne(0).sum())
    vals=v.reshape(K,blocks,8,G,2).permute(0,1,3,4,2).contiguous()
    nw=-(-G//8); code=F.pad((pos[...,0]|(pos[...,1]<<2)),(0,nw*8-G)).reshape(K,R,nw,8)
    words=torch.zeros(K,R,nw,dtype=torch.int64)
    for j in range(8): words|=code[...,j]<<(4*j)
    words=words.to(torch.int32).reshape(K,blocks,8,nw).transpose(2,3).contiguous()
    keep.extend([vals,words])
    return M(vals.data_ptr(),words.data_ptr(),bp.data_ptr(),R,G,0 if K==1 else vals[0].numel(),0 if K==1 else words[0].numel(),0 if len(bp)==1 else R)
def run(N,H,B,obs=18,A=5):
    agent=build_agent(build_config({"method":"random24","hidden_dim":H}),obs,A,N)
    masks=dict(zip(agent.masked_layers,argmax_masks(list(agent.masked_layers.values()))))
    with torch.inference_mode():
        W=agent.weights(masks)
        def team(sparse):
            arr=(M*6)(*[pack(W[n].weight.expand(N,-1,-1),W[n].bias,3 if n.startswith("rnn") else 1,sparse) for n in LAYERS]); return arr
        S,D=team(True),team(False)
        H8=-(-H//8)*8; x=torch.randn(N,B,obs); h=torch.zeros(N,B,H8); q=torch.empty(N,B,A); sc=torch.empty(4*(-(-obs//4)*4+8*H8+8*((A+7)//8))+64)
        P=lambda t:ctypes.c_void_p(t.data_ptr()); I=ctypes.c_int64
        def call(arr): L.k24_act_step(I(N),I(B),I(obs),I(A),arr,P(x),P(h),P(q),P(sc))
        xs=x.permute(0,2,1).contiguous(); hs=torch.randn(N,H,B)*.3
        h.zero_(); h[...,:H]=hs.permute(0,2,1); call(S); qr,hr=step(W,xs,hs)
        e=max((q-qr.permute(0,2,1)).abs().max().item(),(h[...,:H]-hr.permute(0,2,1)).abs().max().item())
        h.zero_(); h[...,:H]=hs.permute(0,2,1); call(D); e2=(q-qr.permute(0,2,1)).abs().max().item()
        # torch forms: bmm with folded weights (batch-major)
        Ws={n:W[n].weight.expand(N,-1,-1).transpose(1,2).contiguous() for n in LAYERS}; Bs={n:W[n].bias.unsqueeze(1).expand(N,1,-1).contiguous() if len(W[n].bias)==1 else W[n].bias.unsqueeze(1) for n in LAYERS}
        def torch_step(x,h):
            a=torch.baddbmm(Bs["fc1"],x,Ws["fc1"]).relu_(); gx=torch.baddbmm(Bs["rnn_input"],a,Ws["rnn_input"]); gh=torch.baddbmm(Bs["rnn_hidden"],h,Ws["rnn_hidden"])
            rz=(gx[...,:2*H]+gh[...,:2*H]).sigmoid_(); r,z=rz.split(H,-1); n=torch.addcmul(gx[...,2*H:],r,gh[...,2*H:]).tanh_(); h=torch.lerp(n,h,z)
            a=torch.baddbmm(Bs["fc2"],h,Ws["fc2"]).relu_(); a=torch.baddbmm(Bs["fc3"],a,Ws["fc3"]).relu_(); return torch.baddbmm(Bs["fc4"],a,Ws["fc4"]),h
        hb=hs.permute(0,2,1).contiguous()
        qt,_=torch_step(x,hb); e3=(qt-qr.permute(0,2,1)).abs().max().item()
        lins={n:[(W[n].weight.expand(N,-1,-1)[k].contiguous(),W[n].bias[0]) for k in range(N)] for n in LAYERS}
        def torch_loop(x,h):
            for k in range(N):
                l=lambda n,y:F.linear(y,*lins[n][k])
                a=l("fc1",x[k]).relu_(); hh=torch.gru_cell(a,h[k],lins["rnn_input"][k][0],lins["rnn_hidden"][k][0],lins["rnn_input"][k][1],lins["rnn_hidden"][k][1])
                q=l("fc4",l("fc3",l("fc2",hh).relu_()).relu_())
        fs={"2:4":lambda:call(S),"packed dense":lambda:call(D),"torch bmm":lambda:torch_step(x,hb),"torch loop":lambda:torch_loop(x,hb),"present":lambda:step(W,xs,hs)}
        T={n:[] for n in fs}; reps=max(1,int(3e-3/(N*B*H*H*8*1e-10+5e-5)))
        for _ in range(25):
            for n,f in fs.items():
                t=time.perf_counter()
                for _ in range(reps): f()
                T[n].append((time.perf_counter()-t)/reps*1e6)
        m={n:st.median(t) for n,t in T.items()}
        best=min(m["torch bmm"],m["torch loop"])
        print(f"N={N} H={H} B={B} err {e:.1e} {e2:.1e} {e3:.1e} | "+", ".join(f"{n} {v:.0f}" for n,v in m.items())+f" us | torch/2:4 {best/m['2:4']:.2f} own {m['packed dense']/m['2:4']:.2f} present/2:4 {m['present']/m['2:4']:.2f}",flush=True)
for N,H,B in ((8,64,1),(8,128,1),(3,64,1),(8,64,4),(8,64,32),(8,128,32),(3,64,32)): run(N,H,B)
