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

Extraction "statement.ml" run logit probability score divergence without.
