(** The definitions of the statement as an OCaml program, with floats for reals: what they mean can be
    run, and compared with decoders that people run. No proof uses this. *)
From Coq Require Import Reals Extraction ExtrOcamlBasic ExtrOcamlNatInt.
From Snowball Require Import Statement.

Extract Constant Rdefinitions.RbaseSymbolsImpl.R => "float".
Extract Constant Rdefinitions.RbaseSymbolsImpl.Rabst => "(fun _ -> assert false)".
Extract Constant Rdefinitions.RbaseSymbolsImpl.Rrepr => "(fun _ -> assert false)".
Extract Constant Rdefinitions.RbaseSymbolsImpl.R0 => "0.".
Extract Constant Rdefinitions.RbaseSymbolsImpl.R1 => "1.".
Extract Constant Rdefinitions.RbaseSymbolsImpl.Rplus => "( +. )".
Extract Constant Rdefinitions.RbaseSymbolsImpl.Rmult => "( *. )".
Extract Constant Rdefinitions.RbaseSymbolsImpl.Ropp => "( ~-. )".
Extract Constant Rdefinitions.RinvImpl.Rinv => "(fun x -> 1. /. x)".
Extract Constant Rtrigo_def.exp => "exp".
Extract Constant Rtrigo_def.cos => "cos".
Extract Constant Rtrigo_def.sin => "sin".
Extract Constant Rpower.ln => "log".
Extract Constant R_sqrt.sqrt => "sqrt".

(** Vectors are functions that compute their coordinates anew each time they are asked, which takes too
    long for layers on end. So [run], the only user of [fold_left], remembers what it has computed. *)
Extract Constant List.fold_left => "
  (fun f layers start ->
    let remember (stream : int -> int -> float) =
      let seen = Stdlib.Hashtbl.create 64 in
      fun i c ->
        match Stdlib.Hashtbl.find_opt seen (i, c) with
        | Some x -> x
        | None -> let x = stream i c in Stdlib.Hashtbl.add seen (i, c) x; x
    in
    Stdlib.List.fold_left (fun s l -> Obj.magic (remember (Obj.magic (f s l)))) start layers)".

Extraction "statement.ml" run logit probability score divergence without.
