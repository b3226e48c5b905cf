(* Runs the definitions of Statement.v, as Floats.v writes them into statement.ml, on a decoder of
   numbers. Standard input: width heads group half hidden vocabulary rope_theta norm_eps layers, the
   matrices by rows (embedding; of each layer Wq by heads, Wk Wv by groups, Wo by heads, Wgate Wup
   Wdown; unembedding), a layer to remove, the number of tokens, tokens. Output: for each layer the scores and the divergences
   that its removal causes right after it, by position; logits and probabilities with all layers;
   logits without the layer.

   Vectors are functions that compute their coordinates anew each time, so that two layers on end
   take too long. Between layers the driver makes a table of the stream, and goes on with the decoder
   whose token p is embedded as the stream at position p: [run M (ls ++ [l]) t = block M l (run M ls t)]. *)
open Statement

let number () = Scanf.scanf " %f" Fun.id
let whole () = Scanf.scanf " %d" Fun.id

let matrix rows columns =
  let table = Array.init rows (fun _ -> Array.init columns (fun _ -> number ())) in
  fun row column -> table.(row).(column)

let matrices count rows columns =
  let table = Array.init count (fun _ -> matrix rows columns) in
  fun index -> table.(index)

let read_decoder () =
  let width = whole () in
  let heads = whole () in
  let group = whole () in
  let half = whole () in
  let hidden = whole () in
  let vocabulary = whole () in
  let rope_theta = number () in
  let norm_eps = number () in
  let count = whole () in
  let embedding = matrix vocabulary width in
  let read_layer _ =
    let wq = matrices heads (2 * half) width in
    let wk = matrices (heads / group) (2 * half) width in
    let wv = matrices (heads / group) (2 * half) width in
    let wo = matrices heads width (2 * half) in
    let wgate = matrix hidden width in
    let wup = matrix hidden width in
    let wdown = matrix width hidden in
    { wq; wk; wv; wo; wgate; wup; wdown }
  in
  let layers = List.init count read_layer in
  let unembedding = matrix vocabulary width in
  { width; heads; group; half; hidden; vocabulary; rope_theta; norm_eps; embedding; layers; unembedding }

let print values = print_endline (String.concat " " (List.map (Printf.sprintf "%.17g") values))

let () =
  let m = read_decoder () in
  let removed = whole () in
  let length = whole () in
  let tokens = List.init length (fun _ -> whole ()) in
  let positions = List.init length Fun.id in
  let resumed stream layers = { m with embedding = stream; layers } in
  let table stream =
    let t = Array.init length (fun i -> Array.init m.width (fun c -> stream i c)) in
    fun i c -> t.(i).(c)
  in
  let step stream l = table (run (resumed stream [ l ]) [ l ] positions) in
  let embedded = table (run m [] tokens) in
  let watched stream l =
    let one = resumed stream [ l ] in
    print (List.map (score one 0 positions) positions);
    print (List.map (divergence one 0 1 positions) positions);
    step stream l
  in
  let last = resumed (List.fold_left watched embedded m.layers) [] in
  let vocabulary = List.init m.vocabulary Fun.id in
  print (List.map (logit last [] positions) vocabulary);
  print (List.map (probability last [] positions) vocabulary);
  let ablated = resumed (List.fold_left step embedded (without removed m.layers)) [] in
  print (List.map (logit ablated [] positions) vocabulary)
